"""What training will hold in memory: by formula and counted on the meta device, and the first setting that fits."""
