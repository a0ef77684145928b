"""Side-by-side runs against peers.  They print ratios; nothing here is a test."""
