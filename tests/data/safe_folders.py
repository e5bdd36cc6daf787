"""A .SAFE folder of Sentinel-2 as ESA lays it out: JPEG 2000 files in GRANULE, without nodata in their headers."""

import rasterio

GRANULE = "GRANULE/L2A_T36MXE_A041600_20230610T075501/IMG_DATA"
SAFE_METERS = {**dict.fromkeys(("02", "03", "04", "08"), 10), "01": 60}
SAFE_METERS |= dict.fromkeys(("05", "06", "07", "8A", "11", "12"), 20)


def safe_folder(folder, values, place):
    """values: {band number: [H, W] uint16 at 10 m}, stored at each band's own resolution and those coarser; place: crs
    and transform at 10 m. Returns the folder."""
    for band, pixels in values.items():
        for meters in [m for m in (10, 20, 60) if m >= SAFE_METERS[band]]:
            path = folder / GRANULE / f"R{meters}m" / f"T36MXE_20230610T074621_B{band}_{meters}m.jp2"
            path.parent.mkdir(parents=True, exist_ok=True)
            part = pixels[None, :: meters // 10, :: meters // 10]
            transform = rasterio.Affine(*place["transform"]) @ rasterio.Affine.scale(meters // 10)
            layout = dict(driver="JP2OpenJPEG", count=1, height=part.shape[1], width=part.shape[2], dtype="uint16")
            layout |= dict(crs=place["crs"], transform=transform, QUALITY="100", REVERSIBLE="YES")
            with rasterio.open(path, "w", **layout) as file:
                file.write(part)
    return folder
