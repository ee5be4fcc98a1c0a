"""
Digit detection as text: a real task that learns in minutes on a CPU and needs no download.

The prompt is a canvas in patch codes, the answer a JSON list of boxes with the digit as `desc`. A configuration reaches
the three parts by import path, as it would reach your own:

    model:    {tokenizer_name_or_path: "examples.digits.tokenizer:build_digits_tokenizer"}
    data:     {train: {source: "examples.digits.data:load_digits", size: 16000, arguments: {ramp_fraction: 0.5}}}
    training: {callbacks: ["examples.digits.pictures:DrawCanvases"]}
"""
