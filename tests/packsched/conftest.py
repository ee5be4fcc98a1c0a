from hypothesis import settings

# Time is no property of the code under test: a shared machine may stall for a second at any moment.
settings.register_profile("packsched", deadline=None)
settings.load_profile("packsched")
