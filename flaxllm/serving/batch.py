"""Texts that are written together: which of them has which row, what it reads, and when its row is free again."""

import logging
from collections import deque

import jax
import numpy as np

from flaxllm.decoding import prepare
from flaxllm.decoding.engine import Choice, bucket
from flaxllm.decoding.reading import check_writes, has_encoder
from flaxllm.models import Model, family
from flaxllm.nn import Context
from flaxllm.serving import rows
from flaxllm.serving.errors import ApiError, failed
from flaxllm.serving.job import Job, Text, Token

_log = logging.getLogger("flaxllm")
READ_A_STEP = rows.WIDTHS[0]  # so many tokens of prompts are read between two steps of the others


class Batch:
    """`num_rows` texts of up to `max_len` tokens each, prompt included; all is done by one thread.

    What a text gets does not depend on the others. A prompt that begins with what some row holds has that copied. Of an
    encoder-decoder a prompt is the source: it may have `max_len` tokens, and so may its text.

    Raises:
      InputError: the model writes no text.
    """

    def __init__(self, model: Model, params: dict, num_rows: int, max_len: int, ctx: Context):
        check_writes(model)
        self.has_source = has_encoder(model)
        # GPT looks positions up; the others would read longer sources than they were made for, and every step looks at all of it.
        limited = model.family == "gpt" or self.has_source
        most = model.config.max_len // rows.LEAST * rows.LEAST if limited else max_len
        self.max_len, self.num_rows = min(max_len, most), num_rows
        self.num_copied = 0  # tokens that were not read again
        self.model, self.params, self.ctx = model, prepare(model, params), ctx
        module = family(model.family)
        windows = module.windows(model.config) if hasattr(module, "windows") else ()
        self._keeps_all = not (self.has_source or any(windows))
        self._num_top = min(rows.NUM_TOP, model.config.vocab_size)
        self._reset()

    def _reset(self) -> None:
        slots = bucket(self.max_len)
        self._rows = rows.empty_rows(self.model, self.params, self.num_rows, slots, self.ctx)
        self._one = rows.empty_rows(self.model, self.params, 1, slots, self.ctx).state  # where prompts are read
        self._held: list[Text | None] = [None] * self.num_rows  # whose tokens each row holds
        self._free = deque(range(self.num_rows))  # the one that has rested longest comes first
        self._active: dict[int, Text] = {}
        self._reading: tuple[int, Text, rows.Rows, int] | None = None
        self._under_way: tuple[list[tuple[int, Text]], Choice] | None = None

    @property
    def num_bytes(self) -> int:
        """Memory of the parameters and of all rows."""
        return sum(x.nbytes for x in jax.tree.leaves((self.params, self._rows, self._one)))

    @property
    def has_room(self) -> bool:
        return bool(self._free) and self._reading is None

    @property
    def is_idle(self) -> bool:
        return not (self._active or self._reading or self._under_way)

    @property
    def num_active(self) -> int:
        return self.num_rows - len(self._free)

    def warm_up(self) -> None:
        """Compile all that will run."""
        settings = rows.row_settings()
        if self.has_source:
            one = rows.with_prompt(self._one, self._begin_of(np.zeros(1, np.int32)), 0, settings)
            for width in (*rows.SOURCE_WIDTHS, self.max_len):
                one, _ = rows.read_source(self.model, self.params, one, np.zeros(min(width, self.max_len), np.int32), self.ctx)
        for width in () if self.has_source else rows.WIDTHS:
            for begin in (0, min(width, self.max_len - 1)):
                prompt = np.zeros(min(begin + width, self.max_len), np.int32)
                one = rows.with_prompt(self._one, prompt, begin, settings)
                one, _ = rows.read_piece(self.model, self.params, one, prompt, begin, self.ctx)
                self._one = one.state
        self._rows = rows.put(self._rows, one, np.int32(0))
        rows.take(self._rows.state, np.int32(0))
        for plain in (True, False):
            np.asarray(self._step_all(np.zeros(self.num_rows, bool), plain).token)
        self._reset()

    def begin(self, job: Job) -> None:
        """Give a job the row that has rested longest; what another row holds of its prompt is copied."""
        begin = self._begin_of(job.prompt)
        shared, holder = max((self._shared(begin[:-1], held), row) for row, held in enumerate(self._held))
        state = rows.take(self._rows.state, np.int32(holder)) if shared else self._one
        self.num_copied += shared
        self._reading = self._free.popleft(), Text(job, begin), rows.with_prompt(state, begin, shared, job.settings), shared

    def _begin_of(self, prompt: np.ndarray) -> np.ndarray:
        """The tokens that a text begins with."""
        return np.array([self.model.config.decoder_start_token], np.int32) if self.has_source else prompt

    def _shared(self, prompt: np.ndarray, held: Text | None) -> int:
        """How many tokens from the first on a row holds already: all of the prompt, or so many as leave no odd piece."""
        if held is None or not self._keeps_all:
            return 0
        length = min(len(prompt), len(held.read))
        differs = prompt[:length] != held.read[:length]
        common = int(differs.argmax()) if differs.any() else length
        return common if common == len(prompt) >= rows.LEAST else common // rows.LEAST * rows.LEAST

    def read(self, budget: int) -> int:
        """Read a piece of the prompt that is being read, and take its row among the others after the last. How many tokens
        of the budget are left."""
        row, text, one, begin = self._reading
        prompt = text.tokens[: text.begin - 1]
        if self.has_source:
            one, width = rows.read_source(self.model, self.params, one, text.job.prompt, self.ctx)
            budget -= width
        if begin < len(prompt):
            one, end = rows.read_piece(self.model, self.params, one, prompt, begin, self.ctx)
            budget -= end - begin
            self._reading, begin = (row, text, one, end), end
        if begin == len(prompt):
            self._rows = rows.put(self._rows, one, np.int32(row))
            self._one, self._reading = one.state, None
            self._held[row] = self._active[row] = text
        return budget

    @property
    def is_reading(self) -> bool:
        return self._reading is not None

    def step(self) -> None:
        """Have the device write a token more of each text, and meanwhile hand out those of the step before."""
        following = None
        if self._active:
            stepped = list(self._active.items())
            active = np.zeros(self.num_rows, bool)
            active[list(self._active)] = True
            following = stepped, self._step_all(active, plain=all(text.job.is_plain for _, text in stepped))
            for row, text in stepped:
                text.steps += 1
                if text.steps == text.job.max_new:
                    self._leave(row)
        before, self._under_way = self._under_way, following
        if before is not None:
            self._hand_out(*before)

    def _step_all(self, active: np.ndarray, plain: bool) -> Choice:
        settings = self._rows.settings.replace(used=rows.PLAIN if plain else rows.FULL)
        num_top = 0 if plain else self._num_top
        state, choice = rows.step(self.model, self.params, self._rows.state, settings, active, num_top, self.ctx)
        self._rows = self._rows.replace(state=state)
        return choice

    def _hand_out(self, stepped: list[tuple[int, Text]], choice: Choice) -> None:
        tokens, logprobs = np.asarray(choice.token).tolist(), np.asarray(choice.logprob).tolist()
        top = None if choice.top is None else [np.asarray(part) for part in choice.top]
        for row, text in stepped:
            if text.ended:
                continue
            text.add(tokens[row])
            likeliest = tuple(zip(top[0][row].tolist(), top[1][row].tolist())) if text.job.wants_top else ()
            try:
                stops = text.job.on_token(Token(tokens[row], logprobs[row], likeliest))
            except Exception:  # one text's failure is not the others'
                _log.exception("a token could not be handed out")
                self._end(row, text, failed())
                continue
            if stops or text.is_full:
                self._end(row, text, "stop" if stops else "length")

    def end_cancelled(self) -> None:
        for row, text in self._begun():
            if text.job.cancelled:
                self._end(row, text, "cancelled")

    def lose(self, error: ApiError) -> None:
        """End all texts and begin anew, because of an error."""
        for row, text in self._begun():
            self._end(row, text, error)
        self._reset()

    def _begun(self) -> list[tuple[int, Text]]:
        last = self._under_way[0] if self._under_way else []
        reading = [self._reading[:2]] if self._reading else []
        begun = {text: row for row, text in [*last, *self._active.items(), *reading] if not text.ended}
        return [(row, text) for text, row in begun.items()]

    def _end(self, row: int, text: Text, how: str | ApiError) -> None:
        text.ended = True
        if self._active.get(row) is text:
            self._leave(row)
        elif self._reading is not None and self._reading[1] is text:
            self._one, self._reading = self._reading[2].state, None
            self._free.append(row)
        text.job.on_end(how)

    def _leave(self, row: int) -> None:
        del self._active[row]
        self._free.append(row)
