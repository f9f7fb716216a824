"""What is sent to `/v1/audio/speech` and what comes back, for the OpenAPI document."""

from vmm_server.api.openapi import SSE, Example

MODEL = "kokoro:82m"

SPEECH = (
    Example(
        "An MP3 file",
        "",
        {"model": MODEL, "input": "Good morning. The train leaves at ten.", "voice": "af_heart"},
        media_type="audio/mpeg",
        is_sent=False,
    ),
    Example(
        "Samples, faster",
        "",
        {"model": MODEL, "input": "Good morning.", "voice": "nova", "response_format": "pcm", "speed": 1.25},
        media_type="audio/pcm",
        is_sent=False,
    ),
    Example(
        "Events",
        (
            {"type": "speech.audio.delta", "audio": "//NkxAAAAANIAAAAAExBTUUzLjEwMFVVVVU="},
            {
                "type": "speech.audio.done",
                "usage": {"input_tokens": 38, "output_tokens": 105, "total_tokens": 143},
            },
        ),
        {"model": MODEL, "input": "Good morning.", "voice": "af_heart", "stream_format": "sse"},
        media_type=SSE,
        is_sent=False,
    ),
)
