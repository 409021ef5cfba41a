"""What experiments share, mainly those that train from scratch on images and point clouds."""
