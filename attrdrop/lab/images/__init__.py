"""RelDrop on images: data sets, training runs with and without occlusion, reports."""
