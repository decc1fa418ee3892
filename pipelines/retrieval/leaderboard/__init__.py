"""Every source ranked on the same days by the same rules: `reloop bench retrieval`.

    data_sets   what a board is made on: a state folder filled by the real ingest, and the moment to judge at
    trial       one source in a process of its own: fitted, asked, measured; a crash costs its line
    grids       knobs that the cheap sources may choose from, on the validation window
    board       the trials become lines with intervals, costs and paired differences
    selection   which few sources make the best blend for their seconds
    page        the table for people; JSON, CSV and a plot under reports/bench/

The frame is that of training (`datasets.universe`): the judged fold is the test window, the newest
ranker's fold before it the validation window. Lists are made over the whole catalogue from what had
happened and been received before the fold's cutoff; knobs are chosen on the validation window alone.
"""
