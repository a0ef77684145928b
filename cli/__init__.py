"""THE SHELL: what a person or a service manager starts; the only reader of files, environment and clock."""
