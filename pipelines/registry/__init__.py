"""Releases: bundles, the champion pointer, the gate. The only room that imports MLflow."""
