from dataclasses import dataclass


@dataclass(frozen=True)
class Quantization:
    scale: float
    zero_point: int

    @classmethod
    def of_range(cls, low: float, high: float) -> 'Quantization':
        low, high = min(low, 0.), max(high, 0.)
        scale = (high - low) / 255 or 1.
        return cls(scale, min(255, max(0, round(-low / scale))))
