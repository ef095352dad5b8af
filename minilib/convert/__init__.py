"""The released AudioLDM 2 in and out: diffusers' folders, and the authors' own file."""
