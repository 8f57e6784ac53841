"""The commands, one module for each kind; they import what they need when they run."""
