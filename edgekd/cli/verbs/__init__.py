"""One file a verb, from top to bottom: its flags, what they change in the recipe, what it does, what it says last.

What is imported at the top of these files must be light, for `--help` imports them all; the rest is imported in the
bodies, after what can be refused without it.
"""
