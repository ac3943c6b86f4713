"""What a supervisor decides: states, events and effects.  No clock, no input or output."""
