"""Rankers that are networks over the feature matrix: trained with JAX (the extra `neural`), scored with numpy."""
