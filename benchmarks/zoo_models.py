"""Names for ``benchmarks.zoo``: every convolutional network of torchvision, at least one of every family of timm.

A family of timm is a module of ``timm.models``; its smallest networks stand for it. Networks whose main operator is
attention (or a sequence model) are in sets of their own: there only what is not attention can be pruned.
"""

TORCHVISION = """
alexnet vgg11 vgg11_bn vgg13 vgg13_bn vgg16 vgg16_bn vgg19 vgg19_bn
resnet18 resnet34 resnet50 resnet101 resnet152 resnext50_32x4d resnext101_32x8d resnext101_64x4d
wide_resnet50_2 wide_resnet101_2 densenet121 densenet161 densenet169 densenet201 squeezenet1_0 squeezenet1_1
googlenet googlenet+aux inception_v3 inception_v3+aux mobilenet_v2 mobilenet_v3_small mobilenet_v3_large
mnasnet0_5 mnasnet0_75 mnasnet1_0 mnasnet1_3
shufflenet_v2_x0_5 shufflenet_v2_x1_0 shufflenet_v2_x1_5 shufflenet_v2_x2_0
efficientnet_b0 efficientnet_b1 efficientnet_b2 efficientnet_b3 efficientnet_b4 efficientnet_v2_s
regnet_x_400mf regnet_x_800mf regnet_x_1_6gf regnet_x_3_2gf regnet_x_8gf
regnet_y_400mf regnet_y_800mf regnet_y_1_6gf regnet_y_3_2gf regnet_y_8gf
convnext_tiny convnext_small convnext_base
fcn_resnet50 fcn_resnet50+aux deeplabv3_resnet50 deeplabv3_resnet50+aux deeplabv3_mobilenet_v3_large
lraspp_mobilenet_v3_large
r3d_18 r2plus1d_18 mc3_18 s3d
"""

DETECTION = """
ssdlite320_mobilenet_v3_large ssd300_vgg16 retinanet_resnet50_fpn fcos_resnet50_fpn
fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_resnet50_fpn
"""

TIMM = """
test_byobnet gernet_s repvgg_a0 mobileone_s0 resnet51q mixnet_s
test_convnext convnext_atto convnextv2_atto convmixer_768_32 cs3darknet_focus_s cspresnet50 cspresnext50 darknet53
cspnext_tiny densenet121 densenetblur121d dla34 dla46x_c dla60_res2net dpn48b
test_efficientnet efficientnet_b0 efficientnet_lite0 mnasnet_small mobilenetv2_050 fbnetc_100 spnasnet_100
tf_efficientnetv2_b0 efficientnet_cc_b0_4e tinynet_e fasternet_t0
focalnet_tiny_srf ghostnet_050 ghostnetv2_100 ghostnetv3_050 hardcorenas_b hgnet_tiny hgnetv2_b0 hrnet_w18_small
inception_next_atto inception_resnet_v2 inception_v3 inception_v4 lcnetv2_small mambaout_femto
mobilenetv3_small_050 lcnet_035 fbnetv3_b nasnetalarge test_nfnet nfnet_l0 nf_resnet50 nf_regnet_b0 pnasnet5large
rdnet_tiny regnetx_002 regnety_002 regnetz_b16 repghostnet_050 repvit_m1 res2net50_14w_8s res2next50
resnest14d resnet18 resnet26d resnet50 seresnet18 ecaresnet26t resnetblur50 resnetaa50 resnext26ts skresnet18
resnetv2_18 resnetv2_50d resnetv2_50x1_bit rexnet_100 rexnetr_100 selecsls42
legacy_seresnet18 legacy_senet154 starnet_s050 tresnet_m vgg11_bn vovnet39a ese_vovnet19b_dw
xception41 xception41p legacy_xception poolformer_s12 poolformerv2_s12 convformer_s18
"""

TIMM_ATTENTION = """
halonet26t lambda_resnet26t botnet26t_256 beit_base_patch16_224 cait_xxs24_224 coat_tiny convit_tiny cpubone_nano
crossvit_tiny_240 csatv2 davit_tiny deit_tiny_patch16_224 edgenext_xx_small efficientformer_l1 efficientformerv2_s0
efficientvim_m1 efficientvit_b0 efficientvit_m0 fastvit_t8 gcvit_xxtiny hiera_tiny_224 iformer_t levit_128s
lowformer_b0 test_coatnet maxxvit_rmlp_nano_rw_256 mixer_s32_224 mobilenetv4_hybrid_medium mobilevit_xxs
mobilevitv2_050 mvitv2_tiny nest_tiny nextvit_small pit_ti_224 pvt_v2_b0 sequencer2d_s shvit_s1 swiftformer_xs
swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_224 tiny_vit_5m_224 tnt_s_legacy_patch16_224
twins_svt_small visformer_tiny test_vit vit_tiny_r_s16_p8_224 test_vit_relpos vitamin_small_224 volo_d1_224
xcit_nano_12_p8_224 vit_tiny_patch16_dinov3_qkvb
"""

TORCHVISION_ATTENTION = "vit_b_16 swin_t swin_v2_t maxvit_t mvit_v1_b raft_small"

# What every change is tried on first: one network of every kind of trouble.
QUICK = """
tv/resnet18 tv/googlenet+aux tv/densenet121 tv/shufflenet_v2_x0_5 tv/mobilenet_v3_small tv/convnext_tiny
tv/lraspp_mobilenet_v3_large tv/r2plus1d_18
timm/test_byobnet timm/test_efficientnet timm/test_nfnet timm/test_convnext timm/ghostnet_050 timm/resnest14d
timm/skresnet18 timm/res2net50_14w_8s timm/resnetblur50 timm/test_vit timm/mobilevit_xxs
"""


def _under(prefix: str, names: str) -> tuple[str, ...]:
    return tuple(f"{prefix}/{n}" for n in names.split())


SETS: dict[str, tuple[str, ...]] = {
    "quick": tuple(QUICK.split()),
    "torchvision": _under("tv", TORCHVISION),
    "torchvision-detection": _under("tv", DETECTION),
    "torchvision-attention": _under("tv", TORCHVISION_ATTENTION),
    "timm": _under("timm", TIMM),
    "timm-attention": _under("timm", TIMM_ATTENTION),
}
