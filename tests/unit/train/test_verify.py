from tunesmith.train.verify import rounding_warning


def test_a_loss_that_bfloat16_rounded_is_warned_of_with_both_figures():
    (said,) = rounding_warning({"loss_live": 1.2, "loss_float32": 1.1}, "bfloat16")
    assert "a loss of 1.200 where float32 computes 1.100" in said
    assert rounding_warning({"loss_live": 1.2, "loss_float32": 1.19}, "bfloat16") == []
    assert rounding_warning({"loss_live": 1.2, "loss_float32": 1.19}, "float32") != []
