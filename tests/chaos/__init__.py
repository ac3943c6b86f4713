"""A seeded driver that kills what holds services up, and looks from outside whether the services noticed.

    make chaos PROFILE=supervisor SEED=7 STEPS=1000 SERVICES=50

Everything it starts descends from it (it is PID 1 of a namespace of its own, or a subreaper), and it signals
nothing else: a pidfd is opened first, then its descent is checked, then the pidfd is used.
"""
