"""What a model is asked to do."""


def seen_by(model, run):
    """Number of samples in each forward of the model while something runs."""
    sizes = []
    handle = model.register_forward_hook(lambda module, arguments, output: sizes.append(len(arguments[0])))
    try:
        run()
    finally:
        handle.remove()
    return sizes
