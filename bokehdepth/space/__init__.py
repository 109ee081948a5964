"""All of the page but gradio: forms, endpoints, views, texts, sessions, fairness and what keeps a server safe."""
