"""What experiments share that train from scratch and compare arms: on images, on point clouds."""
