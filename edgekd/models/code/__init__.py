"""Code from outside: which of it may run, from where it is imported, and what makes a teacher of it."""
