"""What a run and an evaluation leave for people: results, figures, tables, a page.

    outputs      results.json, scores.npz, tables and report of one evaluation
    report       report.html from them
    overview     its head: cards and tables of what was measured
    html         pieces of a page
    rates        its sections on error rates
    tables       the tables that papers print
    plots        figures of a run
    rate_curves  figures of error rates

Knows results and the metrics of a run, and nothing of networks.
"""
