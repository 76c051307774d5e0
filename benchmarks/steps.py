"""A step of the training, for scripts that measure it."""


def iterate(training, images, labels, ages, sizes=None):
    """One global step, as main.run takes it."""
    images, labels, ages = training.begin_step(images, labels, ages, sizes)
    if training.is_max_step():
        training.max_step(images, ages)
    else:
        training.min_step(images, labels, ages)
    training.step += 1
