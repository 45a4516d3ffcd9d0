"""Meshes of devices, several processes, and what chips can do."""
