"""Conversion of the released AudioLDM 2: diffusers' folders and the authors' file."""
