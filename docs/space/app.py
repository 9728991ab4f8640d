"""The demo as a Hugging Face Space; see docs/demo.md of vt_hub."""

from vt_hub.demo import build, start

app = build()
start(app)
app.block_thread()
