"""From content to sealed bytes and back: compression, frames, containers, keys and signatures."""
