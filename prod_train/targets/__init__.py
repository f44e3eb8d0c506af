"""The masked distribution that a model is trained towards, made once and kept."""
