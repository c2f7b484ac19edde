"""Which pictures make which step: a function of seed and step."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from macai.diffusion.training.buckets import Size
from macai.diffusion.training.draws import order


@dataclass(frozen=True, slots=True)
class Slot:
    """A place in a step.

    Attributes:
        number: Its own, among those of the step: what is random in it follows from that.
        picture: Index of the picture.
        of_class: Whether that is one of DreamBooth's class pictures.
    """

    number: int
    picture: int
    of_class: bool = False


Step = tuple[int, list[list[Slot]]]
"""Its number, counted from 0, and its parts; the pictures of each have one size."""


class Planner:
    """Puts pictures together to steps.

    In an epoch each picture is in as many steps as it is repeated. As many steps as possible are of
    one size; what is left of all sizes makes the others, so every step but the last of an epoch,
    before they are shuffled, has the same number of pictures.
    """

    def __init__(
        self,
        sizes: Sequence[Size],
        *,
        images: int,
        micro_images: int = 0,
        repeats: int = 1,
        seed: int = 0,
        class_sizes: Sequence[Size] = (),
    ) -> None:
        """Take what decides the steps.

        Args:
            sizes: Of the pictures to learn from.
            images: Of a step.
            micro_images: Most of a part; 0 is as many as there are.
            repeats: How often an epoch has each picture.
            seed: Of the order.
            class_sizes: Of DreamBooth's class pictures: a step has as many of them besides, taken
                from an order of their own.
        """
        self._sizes = list(sizes)
        self._class_sizes = list(class_sizes)
        self._images = images
        self._micro = micro_images or images
        self._repeats = repeats
        self._seed = seed
        self.steps_per_epoch = -(-len(self._sizes) * repeats // images)

    def steps(self, first: int, last: int) -> Iterator[Step]:
        """Yield the steps from number `first` to before `last`."""
        epoch, steps = -1, list[list[int]]()
        for number in range(first, last):
            if number // self.steps_per_epoch != epoch:
                epoch = number // self.steps_per_epoch
                steps = self._epoch(epoch)
            pictures = steps[number % self.steps_per_epoch]
            slots = [Slot(i, p) for i, p in enumerate(pictures)]
            if self._class_sizes:
                slots += self._class_slots(number, len(slots))
            yield number, self._parts(slots)

    def _epoch(self, epoch: int) -> list[list[int]]:
        count = len(self._sizes) * self._repeats
        by_size: dict[Size, list[int]] = {}
        for item in order(count, self._seed, "pictures", epoch):
            picture = item // self._repeats
            by_size.setdefault(self._sizes[picture], []).append(picture)
        steps, left = [], list[int]()
        for items in by_size.values():
            whole = len(items) // self._images * self._images
            steps += [items[i : i + self._images] for i in range(0, whole, self._images)]
            left += items[whole:]
        steps += [left[i : i + self._images] for i in range(0, len(left), self._images)]
        return [steps[i] for i in order(len(steps), self._seed, "steps", epoch)]

    def _class_slots(self, step: int, count: int) -> Iterator[Slot]:
        total = len(self._class_sizes)
        for k in range(count):
            epoch, place = divmod(step * self._images + k, total)
            picture = order(total, self._seed, "class", epoch)[place]
            yield Slot(self._images + k, picture, of_class=True)

    def _parts(self, slots: Sequence[Slot]) -> list[list[Slot]]:
        by_size: dict[Size, list[Slot]] = {}
        for slot in slots:
            sizes = self._class_sizes if slot.of_class else self._sizes
            by_size.setdefault(sizes[slot.picture], []).append(slot)
        return [
            group[i : i + self._micro]
            for group in by_size.values()
            for i in range(0, len(group), self._micro)
        ]
