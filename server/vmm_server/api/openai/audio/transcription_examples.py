"""What is sent to `/v1/audio/transcriptions` and `/v1/audio/translations`, and what comes back."""

from vmm_server.api.openapi import SSE, TEXT, Example

MODEL = "whisper:tiny.en"
SPOKEN = "Go forward ten meters."
DURATION = {"type": "duration", "seconds": 2.8}
SEGMENT = {
    "id": 0,
    "seek": 0,
    "start": 0.0,
    "end": 2.8,
    "text": f" {SPOKEN}",
    "tokens": [50363, 1514, 2651, 3478, 10700, 13, 50503],
    "temperature": 0.0,
    "avg_logprob": -0.31,
    "compression_ratio": 0.76,
    "no_speech_prob": 0.01,
}
USAGE = {
    "type": "tokens",
    "input_tokens": 140,
    "input_token_details": {"audio_tokens": 140, "text_tokens": 0},
    "output_tokens": 9,
    "total_tokens": 149,
}

TRANSCRIPTIONS = (
    Example("A sound file", {"text": SPOKEN, "usage": DURATION}, {"model": MODEL}),
    Example(
        "With the times of segments and words",
        {
            "task": "transcribe",
            "language": "english",
            "duration": 2.8,
            "text": SPOKEN,
            "segments": [SEGMENT],
            "words": [{"word": "Go", "start": 0.0, "end": 0.4}],
            "usage": DURATION,
        },
        {"model": MODEL, "response_format": "verbose_json", "timestamp_granularities": ["word", "segment"]},
    ),
    Example(
        "Subtitles",
        f"1\n00:00:00,000 --> 00:00:02,800\n{SPOKEN}\n\n",
        {"model": MODEL, "response_format": "srt", "language": "en"},
        media_type=TEXT,
    ),
    Example(
        "A stream",
        (
            {"type": "transcript.text.delta", "delta": SPOKEN, "start": 0.0, "end": 2.8},
            {"type": "transcript.text.done", "text": SPOKEN, "usage": USAGE},
            "[DONE]",
        ),
        {"model": MODEL, "stream": True},
        media_type=SSE,
    ),
)
TRANSLATIONS = (
    Example("A sound file", {"text": SPOKEN, "usage": DURATION}, {"model": "whisper:small"}),
    Example("As text", f"{SPOKEN}\n", {"model": "whisper:small", "response_format": "text"}, media_type=TEXT),
)
