"""From a place and dates to vectors and maps: archives, tiles, reading, embedding, rasters, similarity search.

`find_acquisitions` asks an archive what it holds of an area, `embed_area` embeds it tile by tile into GeoParquet and
rasters, and `find_similar` finds similar places among the vectors.
"""

from clay_lib import lazy

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "archives": "archives_of find_acquisitions",
        "area": "embed_area",
        "change": "map_change",
        "composites": "composites_of read_composite",
        "demo": "open_study_area",
        "embeddings": "open_vectors read_embeddings",
        "local": "serve_archive write_archive",
        "neighbors": "neighbors_kept",
        "reading": "read_acquisition",
        "search": "find_similar write_geojson",
        "vectors": "from_int8 shrink to_int8",
    },
)
