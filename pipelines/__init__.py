"""Reloop: the pipeline that keeps a recommender system trained, fresh and honest.

The folders are the stages, in the order the data flows: `sources`, `validation`, `features`,
`datasets`, `retrieval`, `ranking`, `evaluation`, `registry`, `serving`, `monitoring`.
"""
