"""Scores of frozen embeddings, always beside those of simple baselines.

`baselines` are hand-crafted features, `probes` the simple classifiers on any features, `intervals` the bootstrap of
every score. `evaluate` combines them for your own labels (`multilabel` for several labels a chip), `segmentation`
scores classes pixel by pixel, `audit` looks for wrong labels, `transfer`, `patches` and `results` measure weights on
real data, `reconstruction` hidden patches beside interpolation, `retrieval` how often a place is found in another
sensor, and `ablation` removes metadata or parts of an image. `components` are the principal components of embeddings.
"""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "audit": "audit_labels",
        "baselines": "pixel_statistics random_convolutions",
        "probes": "knn_score standardize",
        "intervals": "as_text interval resample",
        "evaluate": "Evaluation evaluate_features",
        "segmentation": "class_scores",
        "reconstruction": "reconstruction_table",
        "retrieval": "recalls retrieval_table without_place",
        "ablation": "cloud removal_study",
        "components": "fit_components principal_components",
    },
)
