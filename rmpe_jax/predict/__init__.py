"""From a picture to the poses of its people: detectors, the estimator, and the files that results are written to."""
