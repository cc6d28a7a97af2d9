"""A package only so that studies are started as `python -m docs.studies.<study>.run` from the root of a checkout."""
