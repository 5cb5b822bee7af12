def record(folder, role):
    pass
