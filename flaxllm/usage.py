"""What each command says of itself."""

TRAIN = """\
Trains a language model as an experiment file describes. The same command again
resumes where it stopped.

usage: {command} --config=FILE[:ARGUMENT] --workdir=FOLDER [flags]

  --config=FILE[:ARGUMENT]  the experiment: a Python file with get_config()
  --config.KEY=VALUE        change a key: --config.optimizer.learning_rate=3e-4
  --workdir=FOLDER          where checkpoints, metrics and samples go
  --mode=eval               only judge the workdir's model by the held-out set
  --dry_run                 only show parameters, devices, memory and operations
  --sweep                   train each run that the file's sweep(add) adds
  --slurm=OPTION:VALUE,...  train in Slurm jobs: --slurm=partition:gpu,timeout_min:60
  --distributed             join the run's other processes, which are found under
                            Slurm, MPI, Kubernetes and on TPU pods; elsewhere set
                            JAX_COORDINATOR_ADDRESS=host:port, JAX_NUM_PROCESSES
                            and JAX_PROCESS_ID
  --help                    show this

examples:
  {command} --config=experiments/quickstart.py --workdir=runs/quickstart
  {command} --config=experiments/quickstart.py --config.mesh=fsdp:4 --dry_run
  {command} --config=experiments/shakespeare_char.py:input.txt \\
      --workdir=runs/rates --sweep
"""

INSPECT = """\
Shows what a checkpoint holds, without reading its tensors: architecture, parameters
and their names, memory, and what is tied, left out, missing or unmapped.

usage: flaxllm inspect PATH [--head=HEAD] [--taps] [--quantize=KIND [--text=SOURCE]]

  PATH             a Hugging Face folder, a hub id, or a .gguf file
  --head=HEAD      as another head would see it: base, sequence-classification, ...
  --taps           instead, the names of the inner values that can be looked at
  --quantize=KIND  instead, what int8 or int4 weights would save, and cost: memory and
                   perplexity, before and after
  --text=SOURCE    on this text: a file, a folder, python-docs (the default), ...
  --help           show this
"""

CONVERT = """\
Reads a checkpoint and writes it as a Hugging Face folder, with its tokenizer.

usage: flaxllm convert SOURCE FOLDER [--dtype=DTYPE] [--head=HEAD]

  SOURCE         a Hugging Face folder, a hub id, or a .gguf file
  FOLDER         where config.json, safetensors and tokenizer files go
  --dtype=DTYPE  float32, bfloat16 or float16 (the checkpoint's own unless given)
  --head=HEAD    with another head: base leaves out the one there is
  --help         show this
"""

GENERATE = """\
Writes on after a prompt with the model of a checkpoint, as it comes.

usage: flaxllm generate PATH PROMPT [flags]

  PATH                      a Hugging Face folder, a hub id, or a .gguf file
  PROMPT                    the text to go on from (- reads it from standard input);
                            for T5 and Marian, what they are to transform
  --max_new_tokens=64       tokens to write at most
  --temperature=1           0 always takes the likeliest token
  --top_k=0 --top_p=1 --min_p=0 --typical_p=1
                            draw among the likeliest only
  --repetition_penalty=1 --presence_penalty=0 --frequency_penalty=0
  --no_repeat_ngram_size=0  no sequence of so many tokens twice
  --min_new_tokens=0        tokens to write at least
  --num_beams=1             search with so many beams (with --length_penalty=1)
  --stop=TEXT               end before this text
  --seed=0                  another one draws another text
  --chat                    put the prompt as a user's message, for chat models
  --dtype=DTYPE             float32, bfloat16 or float16 (the checkpoint's own unless given)
  --help                    show this

examples:
  flaxllm generate HuggingFaceTB/SmolLM2-135M-Instruct --chat "What is a transformer?"
  flaxllm generate google-t5/t5-small --temperature=0 \\
      "translate English to German: The house is wonderful."
"""

SERVE = """\
Serves a checkpoint over HTTP, as OpenAI's API has it: completions, chat, embeddings.

usage: flaxllm serve PATH [flags]

  PATH                     a Hugging Face folder, a hub id, or a .gguf file
  --port=8000              where to listen
  --host=127.0.0.1         on which address; 0.0.0.0 for all
  --slots=8                so many texts are written at once
  --max_len=2048           tokens of a text, its prompt included; for T5 and Marian of
                           each of the two, and no more than they were made for
  --max_queue=64           so many may wait; beyond that the answer is 429
  --served_model_name=A,B  the names that clients may ask for
  --timeout=600            seconds after which a request is given up
  --dtype=DTYPE            float32, bfloat16 or float16 (the checkpoint's own unless given)
  --help                   show this

FLAXLLM_API_KEY in the environment is the key that clients must then send.
"""

PIPELINE = """\
Does a task with a checkpoint: what goes in and comes out is named as in transformers.

usage: flaxllm pipeline TASK PATH [TEXT] [flags]

  TASK            text-classification, token-classification (or ner),
                  question-answering, fill-mask, feature-extraction,
                  text-generation, summarization, translation,
                  translation_en_to_de, zero-shot-classification
  PATH            a Hugging Face folder, a hub id, or a .gguf file
  TEXT            the text (- reads one a line from standard input); for
                  question-answering the context
  --OPTION=VALUE  an option of the task, such as --top_k=3, --question=TEXT,
                  --candidate_labels=A,B, --aggregation_strategy=simple,
                  --num_beams=4, --truncation
  --dtype=DTYPE   float32, bfloat16 or float16 (the checkpoint's own unless given)
  --help          show this

In a pipe each text gives a line of JSON, on a terminal lines to read.

examples:
  flaxllm pipeline translation_en_to_de google-t5/t5-small "The house is wonderful."
  flaxllm pipeline question-answering deepset/roberta-base-squad2 \\
      "My name is Wolfgang and I live in Berlin" --question="Where do I live?"
"""

ATTENTION = """\
Draws which tokens of a text attend to which, in every layer and head: a page that
needs no network.

usage: flaxllm attention PATH TEXT [flags]

  PATH                         a Hugging Face folder, a hub id, or a .gguf file
  TEXT                         the text (- reads it from standard input); special tokens
                               in it, such as [MASK] or <|im_start|>, are read as such
  --target=TEXT                for T5 and Marian, the target (unless given, what the
                               model writes)
  --output=attention.html, -o  the page
  --png=FILE                   a still of it, too
  --dtype=DTYPE                float32, bfloat16 or float16 (the checkpoint's own unless given)
  --help                       show this

example:
  flaxllm attention sentence-transformers/all-MiniLM-L6-v2 -o map.html \\
      "The cat sat on the mat because it was tired"
"""

LENS = """\
Draws what each depth of a model would say if it were the last (the logit lens): a page
that needs no network.

usage: flaxllm lens PATH TEXT [flags]

  PATH                    a Hugging Face folder, a hub id, or a .gguf file
  TEXT                    the text (- reads it from standard input); special tokens in
                          it, such as [MASK] or <|im_start|>, are read as such
  --target=TEXT           for T5 and Marian, the target (unless given, what the model
                          writes)
  --output=lens.html, -o  the page
  --png=FILE              a still of it, too
  --dtype=DTYPE           float32, bfloat16 or float16 (the checkpoint's own unless given)
  --help                  show this

example:
  flaxllm lens HuggingFaceTB/SmolLM2-135M "The capital of France is Paris"
"""

COMMANDS = """\
Transformer language models as pure JAX functions.

usage: flaxllm COMMAND [flags]

  train       train a model as an experiment file describes
  inspect     show what a checkpoint holds: its architecture, parameters, memory
  convert     write a checkpoint anew: in another dtype, or from a GGUF file
  generate    write text after a prompt
  pipeline    do a task with a checkpoint: classify, answer, translate, ...
  attention   draw which tokens of a text attend to which
  lens        draw what each depth of a model would say
  serve       answer over HTTP as OpenAI's API does

`flaxllm COMMAND --help` shows a command's flags, `flaxllm --version` the version.
"""
