"""RelDrop on point clouds: data sets, training runs, results. Behind the command ``attrdrop train-points``."""
