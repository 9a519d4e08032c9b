"""The states reduce over processes: two that share the images out between them find what one alone finds."""

import json
import multiprocessing
import textwrap

import pytest
from torch import distributed

SOURCE = textwrap.dedent(
    """
    import json, multiprocessing, sys
    import torch
    from torch import distributed
    from camtools.metrics import LocalizationMAP, MaxBoxAcc, MaxBoxAccV2, MeanIoU, PeakIoU, PointingGame, PointingMAP
    from camtools.metrics import PxAP, TopKLocalization


    def evaluate(share):
        generator = torch.Generator().manual_seed(0)
        maps = torch.rand(9, 6, 7, generator=generator)
        masks = torch.rand(9, 6, 7, generator=generator) < 0.4
        corner = torch.rand(9, 2, 2, generator=generator) * 50
        boxes, sizes, labels = torch.cat([corner, corner + 30], 2), [(90, 80)] * 9, torch.arange(9) % 2
        scores = torch.rand(9, 2, generator=generator)
        moved = boxes + torch.rand(9, 1, 1, generator=generator) * 15
        both = torch.tensor([0, 1])
        preds = [{"boxes": box, "scores": score, "labels": both} for box, score in zip(moved, scores)]
        target = [{"boxes": box, "labels": both} for box in boxes]
        metrics = {
            "PxAP": (PxAP(size=None), maps, masks),
            "PeakIoU": (PeakIoU(size=None), maps, masks),
            "PointingGame": (PointingGame(3), maps, boxes, sizes, labels),
            "PointingMAP": (PointingMAP(3), maps, boxes, sizes, labels, scores[:, 0]),
            "LocalizationMAP": (LocalizationMAP(), preds, target),
            "MeanIoU": (MeanIoU(2), masks.long(), (maps > 0.5).long()),
            "MaxBoxAcc": (MaxBoxAcc(workers=1), maps, boxes, sizes),
            "MaxBoxAccV2": (MaxBoxAccV2(workers=1), maps, boxes, sizes),
            "TopKLocalization": (TopKLocalization(workers=1), maps, boxes, sizes, scores, labels),
        }
        found = {}
        for name, (metric, *data) in metrics.items():
            if sizes[share]:
                metric.update(*[part[share] for part in data])
            more = metric.best_threshold.tolist() if hasattr(metric, "best_threshold") else None
            more = metric.curve().precision.nansum().item() if name == "PxAP" else more
            if hasattr(metric, "per_class"):
                more = {str(label): value for label, value in metric.per_class().items()}
            value = metric.compute()
            value = {key: part.item() for key, part in value.items()} if isinstance(value, dict) else value.item()
            found[name] = [value, more]
        return found


    def work(rank, meeting_point, out):
        distributed.init_process_group("gloo", init_method=f"file://{meeting_point}", rank=rank, world_size=2)
        # at 9 the second process has no image at all
        found = [evaluate(slice(0, split) if rank == 0 else slice(split, None)) for split in (5, 9)]
        with open(out, "w") as file:
            json.dump(found, file)
        distributed.destroy_process_group()


    if "files" in globals():  # in the process that the test starts
        MaxBoxAcc(workers=1).update(torch.rand(1, 4, 4), [torch.tensor([[1.0, 1.0, 3.0, 3.0]])], [(4, 4)])  # compiles
        fork = multiprocessing.get_context("fork")
        workers = [fork.Process(target=work, args=(rank, meeting, files[rank])) for rank in (0, 1)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
        sys.exit(any(worker.exitcode for worker in workers))
    """
)

SUMMED = ("PxAP", "PeakIoU", "PointingGame", "PointingMAP", "LocalizationMAP", "MeanIoU")  # in no fixed order


@pytest.mark.filterwarnings("ignore:The ``compute`` method")
def test_two_processes_find_what_one_does(tmp_path, start):
    if "fork" not in multiprocessing.get_all_start_methods():
        pytest.skip("needs processes that fork")
    if not (distributed.is_available() and distributed.is_gloo_available()):
        pytest.skip("needs torch.distributed with gloo")
    files, script = [tmp_path / "0.json", tmp_path / "1.json"], tmp_path / "both.py"
    script.write_text(SOURCE)
    process = start(script, meeting=str(tmp_path / "meeting"), files=[*map(str, files)])
    process.join(300)
    assert process.exitcode == 0
    here: dict[str, object] = {"__name__": "here"}
    exec(SOURCE, here)
    alone = here["evaluate"](slice(None))
    assert len({alone[name][0] for name in SUMMED}) == 6 and all(0 < alone[name][0] < 100 for name in SUMMED)
    for file in files:
        for found in json.loads(file.read_text()):
            for name, (value, more) in alone.items():
                if name in SUMMED:
                    assert found[name][0] == pytest.approx(value, rel=1e-12), name
                    assert found[name][1] == pytest.approx(more, rel=1e-12), name
                else:
                    assert found[name] == [value, more], name
