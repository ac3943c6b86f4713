"""What a supervisor decides: states, events and effects.  No clock, no input or output.

`Engine` (engine.py) takes events (events.py) and gives effects (effects.py); what may follow what is one table
(table.py).  docs/engine.md is the page for people.
"""
