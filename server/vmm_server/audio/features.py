"""Log-mel spectrograms, as Whisper was trained on them.

30 s of sound are cut into frames of 25 ms, 10 ms apart; the power of each at 201 frequencies is gathered in bands as
wide as the ear's (Slaney's scale, areas of one), and the logarithm of that is moved to about -1 to 1. The same numbers
as transformers' `WhisperFeatureExtractor`, to 1e-4.
"""

import numpy as np
from numpy.typing import NDArray

from vmm_server.audio.transcript import SAMPLE_RATE, Samples

HOP_LENGTH = 160
"""Samples between two frames."""
FRAMES_PER_S = SAMPLE_RATE // HOP_LENGTH
WINDOW_S = 30
WINDOW_SAMPLES = WINDOW_S * SAMPLE_RATE
WINDOW_FRAMES = WINDOW_S * FRAMES_PER_S

_FFT_SIZE = 400
_HALF = _FFT_SIZE // 2
_BLOCK_FRAMES = 128
"""Looked at together: their spectra stay in the processor's cache, and no memory is asked of the system."""
_FLOOR = 1e-10
"""The least power that counts."""
_DYNAMIC_RANGE = 8.0
"""What is this many powers of ten below the loudest is as quiet as nothing."""


class LogMel:
    """Samples of a window → what the encoder takes."""

    def __init__(self, num_mel_bins: int) -> None:
        self._filters = mel_filters(num_mel_bins)
        self._hann = (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(_FFT_SIZE) / _FFT_SIZE)).astype(np.float32)

    def __call__(self, samples: Samples) -> NDArray[np.float32]:
        """float32 `[num_mel_bins, 3000]` of 30 s of samples at most; what is missing is silence."""
        num_frames = min(WINDOW_FRAMES, (len(samples) + _HALF) // HOP_LENGTH + 1)
        frames = np.lib.stride_tricks.sliding_window_view(_padded(samples, num_frames), _FFT_SIZE)[::HOP_LENGTH]
        power = np.full((len(self._filters), WINDOW_FRAMES), _FLOOR, np.float32)
        for first in range(0, num_frames, _BLOCK_FRAMES):
            spectrum = np.fft.rfft(frames[first : first + _BLOCK_FRAMES] * self._hann)
            power[:, first : first + len(spectrum)] = self._filters @ (spectrum.real**2 + spectrum.imag**2).T
        log = np.log10(np.maximum(power, _FLOOR, out=power), out=power)
        np.maximum(log, log.max() - _DYNAMIC_RANGE, out=log)
        log += 4
        log /= 4
        return log


def mel_filters(num_mel_bins: int) -> NDArray[np.float32]:
    """float32 `[num_mel_bins, 201]`: triangles over the frequencies up to 8 kHz, on M. Slaney's scale (Auditory
    Toolbox, 1998), each of area 1."""
    edges = _frequency(np.linspace(0.0, float(_mel(np.array(SAMPLE_RATE / 2))), num_mel_bins + 2))
    widths = np.diff(edges)
    distance = edges[:, None] - np.linspace(0.0, SAMPLE_RATE / 2, _HALF + 1)
    rising, falling = -distance[:-2] / widths[:-1, None], distance[2:] / widths[1:, None]
    triangles = np.maximum(0.0, np.minimum(rising, falling))
    return np.asarray(triangles * (2.0 / (edges[2:] - edges[:-2]))[:, None], np.float32)


def _mel(frequency: NDArray[np.float64]) -> NDArray[np.float64]:
    """Hz → mels: 3 per 200 Hz up to 1 kHz, then 27 per factor of 6.4."""
    above = 15.0 + 27.0 * np.log(np.maximum(frequency, 1000.0) / 1000.0) / np.log(6.4)
    return np.where(frequency < 1000.0, frequency * 3.0 / 200.0, above)


def _frequency(mels: NDArray[np.float64]) -> NDArray[np.float64]:
    """Back from mels to Hz."""
    return np.where(mels < 15.0, mels * 200.0 / 3.0, 1000.0 * np.exp(np.log(6.4) * (mels - 15.0) / 27.0))


def _padded(samples: Samples, num_frames: int) -> Samples:
    """What `num_frames` frames lie on: half a frame mirrored before the sound, silence behind it, or, where it fills
    its 30 s, half a frame mirrored too."""
    padded = np.zeros(_FFT_SIZE + HOP_LENGTH * (num_frames - 1), np.float32)
    there = samples[: len(padded) - _HALF]
    padded[_HALF : _HALF + len(there)] = there
    padded[:_HALF] = padded[_FFT_SIZE:_HALF:-1]
    if num_frames == WINDOW_FRAMES:
        end = _HALF + WINDOW_SAMPLES
        behind = len(padded) - end
        if behind > 0:
            padded[end:] = padded[end - 2 : end - 2 - behind : -1]
    return padded
