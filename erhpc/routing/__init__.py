"""Which expert a prompt belongs to: the c-BTM classifier, its fit, its form on disk. Pure but for the artefact.

Serving (features, classifier, artefact) needs numpy alone; scikit-learn is imported by `fitting` only.
"""
