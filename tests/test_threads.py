"""Threads that share a network: they take turns, or are told to."""

import copy
import os
import signal
import sys
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack

import pytest
import torch
from torch import nn

import tensornet as tn
from tensornet.errors import StateError
from tests.toys import trained


def network():
    net = tn.adapt(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 5)).eval(), tn.AdaptConfig(rank=2))
    for seed, name in enumerate("ab"):
        trained(net.add_task(name, nn.Linear(8, 3 + seed)), seed=seed)
    return net


def in_the_middle(net, act):
    """Do ``act`` once, in the first call of the network, and keep what it gives."""
    given = []

    def once(module, inputs):
        if not given and threading.current_thread() is threading.main_thread():
            given.append(None)
            given[0] = act()

    net.backbone[1].register_forward_pre_hook(once)
    return given


@pytest.mark.parametrize("call", ["task", "rows", "forward_tasks"])
def test_threads_take_turns(call):
    net = network()
    x, names = torch.randn(2, 6), "ab" * 40

    @torch.no_grad()
    def serve(name):
        if call == "rows":
            return torch.stack(net(x, tasks=[name, name]))
        if call == "forward_tasks":
            return net.forward_tasks(x, [name])[name]
        with net.task(name):
            time.sleep(0.001)
            return net(x)

    expected = {name: serve(name) for name in "ab"}
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(4) as threads:
            answers = list(threads.map(serve, names))
    finally:
        sys.setswitchinterval(before)
    for name, answer in zip(names, answers, strict=True):
        torch.testing.assert_close(answer, expected[name])


@pytest.mark.parametrize("change", ["add", "load", "remove"])
def test_tasks_come_and_go_while_another_thread_computes(change, tmp_path):
    net = network()
    x = torch.randn(2, 6)
    expected = {name: net.merged(name).eval()(x) for name in "ab"}
    net.save_task("b", tmp_path / "b")
    act = {
        "add": lambda: net.add_task("c", copy.deepcopy(net["b"].head)),
        "load": lambda: net.load_task(tmp_path / "b", "c"),
        "remove": lambda: net.remove_task("a"),
    }[change]
    with ThreadPoolExecutor(1) as thread:

        def begun():
            waiting = thread.submit(act)
            wait([waiting], timeout=0.2)  # in vain: it waits for this call
            return waiting

        changed = in_the_middle(net, begun)
        outputs = net.forward_tasks(x, ["a", "b"])
        changed[0].result()
    for name, output in outputs.items():
        torch.testing.assert_close(output, expected[name])
    assert net.tasks == (("b",) if change == "remove" else ("a", "b", "c"))
    net.eval()
    for name in net.tasks:
        with net.task(name):
            torch.testing.assert_close(net(x), net.merged(name)(x))


def test_a_call_without_a_task_beside_a_mixed_batch_is_refused_and_spoils_nothing():
    net = network()
    net.set_task("a")
    x = torch.randn(2, 6)
    expected = [net.merged(name).eval()(x)[i] for i, name in enumerate("ba")]
    with ThreadPoolExecutor(1) as thread:
        refused = in_the_middle(net, lambda: thread.submit(nn.Module.__call__, net.backbone, x).exception())
        rows = net(x, tasks=["b", "a"])
    assert isinstance(refused[0], StateError)
    assert "another thread is computing a mixed batch" in str(refused[0])
    for row, wanted in zip(rows, expected, strict=True):
        torch.testing.assert_close(row, wanted)


def test_a_merged_copy_leaves_the_task_that_is_set():
    net = network()
    net.set_task("a")
    x = torch.randn(2, 6)
    expected = net(x)
    in_the_middle(net, lambda: net.merged("b"))
    assert torch.equal(net(x), expected)


def test_a_copy_that_is_made_in_the_middle_of_a_mixed_batch_is_whole():
    net = network()
    x = torch.randn(2, 6)
    expected = {name: net.merged(name).eval()(x) for name in "ab"}
    copies = in_the_middle(net, lambda: copy.deepcopy(net))
    net(x, tasks=["b", "a"])
    for name, wanted in expected.items():
        with copies[0].task(name):
            torch.testing.assert_close(copies[0](x), wanted)


def test_fused_attention_comes_back_when_the_last_thread_is_done():
    attention = nn.Sequential(nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)).eval()
    net = tn.adapt(attention, tn.AdaptConfig(rank=1))
    net.add_task("a")
    net.set_task("a")
    first, second = net._attention.path(), net._attention.path()
    with ExitStack() as ends_last:
        with first:
            ends_last.enter_context(second)
        assert not torch.backends.mha.get_fastpath_enabled()
    assert torch.backends.mha.get_fastpath_enabled()


def served(net, x, act):
    """What a thread that calls the network without a task gets while another one acts, and what refused it."""
    answers, refused, done = [], [], threading.Event()

    def serve():
        while not done.is_set():
            try:
                answers.append(net(x))
            except StateError as error:
                refused.append(error)

    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    try:
        with ThreadPoolExecutor(1) as thread, torch.inference_mode():
            serving = thread.submit(serve)
            for i in range(100):
                act(i)
            done.set()
            serving.result()
    finally:
        sys.setswitchinterval(before)
    return answers, refused


@pytest.mark.parametrize("other", ["replaces", "sets", "rows of one task", "rows of two", "forward_tasks"])
def test_a_plain_call_is_of_one_task_from_its_beginning_to_its_end(other, tmp_path):
    layers = [module for _ in range(8) for module in (nn.Linear(6, 6), nn.LayerNorm(6))]
    net = tn.adapt(nn.Sequential(*layers, nn.Linear(6, 5)).eval(), tn.AdaptConfig(rank=2))
    for seed, name in enumerate("abc"):
        trained(net.add_task(name, nn.Linear(6, 5)), seed=seed)
    net.save_task("a", tmp_path / "0")
    net.save_task("b", tmp_path / "1")
    net.set_task("a")
    x = torch.randn(2, 6)
    whole = [net.merged(name).eval()(x) for name in "abc"]
    act = {
        "replaces": lambda i: net.load_task(tmp_path / str(i % 2), "a", replace=True),
        "sets": lambda i: net.set_task("ab"[i % 2]),
        "rows of one task": lambda i: net(x, tasks=["b", "b"]),
        "rows of two": lambda i: net(x, tasks=["b", "c"]),
        "forward_tasks": lambda i: net.forward_tasks(x, ["b", "c"]),
    }[other]
    answers, refused = served(net, x, act)
    assert answers
    assert all(any(torch.allclose(answer, own, atol=1e-5) for own in whole) for answer in answers)
    if other.startswith("rows"):
        assert refused
        assert all(torch.allclose(answer, whole[0], atol=1e-5) for answer in answers)
    else:
        assert not refused


def begun(call):
    """The answer of a call in a thread that holds nobody up, should it wait for ever."""
    answer = Future()

    def run():
        try:
            answer.set_result(call())
        except BaseException as error:
            answer.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return answer


@pytest.mark.parametrize("act", ["merged", "task", "add"])
def test_a_call_whose_hook_wants_a_turn_and_a_thread_that_sets_a_task_wait_for_each_other_in_turn(act):
    net = network()
    net.set_task("a")
    x, reached = torch.randn(2, 6), threading.Event()

    def hook(module, inputs):
        if not reached.is_set():
            reached.set()
            time.sleep(0.1)  # the other thread waits for this call now
            if act == "merged":
                net.merged("a")
            elif act == "add":
                net.add_task("c")
            else:
                with net.task("b"):
                    net(x)

    net.backbone[1].register_forward_pre_hook(hook)
    calling = begun(lambda: net(x))
    setting = begun(lambda: reached.wait(20) and net.set_task("b"))
    assert not wait([calling, setting], timeout=20).not_done


def held(net):
    """Two events: a call of the network is in its middle, and may go on."""
    inside, go_on = threading.Event(), threading.Event()

    def stop(module, inputs):
        inside.set()
        go_on.wait(20)

    net.backbone[1].register_forward_pre_hook(stop)
    return inside, go_on


def test_an_interrupt_of_who_waits_for_others_leaves_nobody_waiting(monkeypatch):
    net = network()
    net.set_task("a")
    x, (inside, go_on) = torch.randn(2, 6), held(net)

    def interrupted(condition, timeout=None):
        raise KeyboardInterrupt

    calling = begun(lambda: net(x))
    inside.wait(20)
    with monkeypatch.context() as patch:
        patch.setattr(net._turns._changed, "wait_for", interrupted)
        with pytest.raises(KeyboardInterrupt):
            net.set_task("b")
    go_on.set()
    calling.result(20)
    assert begun(lambda: net(x)).result(20) is not None


def test_a_hook_inside_a_mixed_batch_cannot_call_the_network():
    net = network()
    x = torch.randn(2, 6)
    net.backbone[1].register_forward_pre_hook(lambda *_: net(x) and None)
    with pytest.raises(StateError, match="a hook inside a mixed batch"):
        net(x, tasks=["a", "b"])
    net.backbone[1]._forward_pre_hooks.clear()
    net.set_task("a")
    torch.testing.assert_close(net(x), net.merged("a").eval()(x))


def test_turns_hold_while_another_thread_compiles(monkeypatch):
    """`torch.compiler.is_compiling` is true in all threads while one of them compiles."""
    monkeypatch.setattr(torch.compiler, "is_compiling", lambda: True)
    net = network()
    with ThreadPoolExecutor(1) as thread:
        with net.task("a"):
            other = thread.submit(net.set_task, "b")
            assert wait([other], timeout=0.2).not_done
            assert net.active == "a"
        assert other.result(20) is None


@pytest.mark.skipif(not hasattr(os, "fork"), reason="there is no fork here")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_forked_process_waits_for_none_of_the_threads_that_it_has_not():
    net = network()
    inside, go_on = held(net)
    with ThreadPoolExecutor(1) as thread:
        calling = thread.submit(net, torch.randn(2, 6))
        inside.wait(20)
        child = os.fork()
        if not child:
            signal.alarm(10)
            net.set_task("a")
            os._exit(0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
        go_on.set()
        calling.result(20)
