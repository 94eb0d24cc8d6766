"""Sources of rewards: reward models, ensembles and functions, behind one interface."""
