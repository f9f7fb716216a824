"""`/v1/vision`: what models see in pictures. VMM's own routes, in OpenAI's habits."""
