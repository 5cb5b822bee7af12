"""When a group is started, which groups are trained, when weights are published: decided here, and only here.

    driver ──events──▶ Controller.handle          group finished · step done · weights live · generator lost
    driver ◀─decisions── Controller.decide        start · cancel · discard · train · publish

Sans-IO: no Ray, no torch, no clock, no threads, no randomness. The same events in the same order give the
same decisions, on a cluster, in the simulator and in the property tests.
"""
