"""Sound in OpenAI's dialect: transcriptions, translations, speech."""
