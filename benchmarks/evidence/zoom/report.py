def write(content, out):
    raise NotImplementedError
