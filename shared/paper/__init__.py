"""The question generator of the original, reproduced draw by draw (spec: registry, b to d). `--compat=paper` uses it.

It keeps the faults of the original, because the published question sets depend on them: two global random generators are used
for all rows in turn; a question may have fewer options than asked for; a label keeps its decimals; values have the types that
writing and reading CSV gave them. No other part of this project should use it: `shared.tasks` has the corrected rules.
"""
