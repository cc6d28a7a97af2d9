"""What the verbs do: resolve run and recipe, run the stages that need it, say what came out."""
