"""Prompts whose natural continuation calls a deprecated interface, written for this project, one an interface.

A comment says what is wanted and never names the replacement; the last line stops before the call. In completions, the
interface's name stands between `<<` and `>>`. What is installed more often (NumPy, pandas, PyTorch) gets programs that
run as they are, so that a continuation can be executed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

OPEN, CLOSE = "<<", ">>"


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt, and the continuation that calls the deprecated interface.

    Attributes:
        text: ends before the call.
        completion: begins with the call or what leads to it.
        spans: where the interface's name stands in the completion, [start, end] in characters.
    """

    text: str
    completion: str
    spans: tuple[tuple[int, int], ...]

    @classmethod
    def marked(cls, text: str, completion: str) -> Prompt:
        """Of a completion with marks."""
        plain, spans = "", []
        for number, part in enumerate(completion.replace(CLOSE, OPEN).split(OPEN)):
            if number % 2:
                spans.append((len(plain), len(plain) + len(part)))
            plain += part
        return cls(text, plain, tuple(spans))


def prompt_for(deprecated: str) -> Prompt | None:
    """The prompt of an interface, given by its full path; None where none was written."""
    library, _, rest = deprecated.partition(".")
    if library == "tensorflow":
        return _tensorflow(rest)
    if library == "transformers":
        return _transformers(rest)
    if deprecated in _WRITTEN:
        return Prompt.marked(*_WRITTEN[deprecated])
    return None


# ---- NumPy, pandas, scikit-learn, SciPy, seaborn, PyTorch ------------------------------------------------------------

_NP = "import numpy as np\n\n"
_PD = "import pandas as pd\n\n"
_FRAME = _PD + 'df = pd.DataFrame({"name": ["ann", "bob", "cy"], "height": [1.71, 1.83, 1.65]})\n\n'
_DATES = _PD + (
    'index = pd.date_range("2020-01-01", periods=9, freq="2D")\ndf = pd.DataFrame({"price": range(9)}, index=index)\n\n'
)
_TORCH = "import torch\n\n"

_WRITTEN: Mapping[str, tuple[str, str]] = {
    "numpy.alltrue": (
        _NP + "mask = np.array([True, True, False])\n\n# whether every element of the mask is true\nok = np.",
        "<<alltrue>>(mask)\nprint(ok)\n",
    ),
    "numpy.cumproduct": (
        _NP + "growth = np.array([1.1, 1.2, 0.9])\n\n# running product of the growth factors\nlevels = np.",
        "<<cumproduct>>(growth)\nprint(levels)\n",
    ),
    "numpy.product": (
        _NP + "shape = (3, 4, 5)\n\n# number of cells: multiply all entries of the shape\nsize = np.",
        "<<product>>(shape)\nprint(size)\n",
    ),
    "pandas.DataFrame.applymap": (
        _FRAME + "# how long the text of every cell is\nlengths = df.",
        "<<applymap>>(lambda value: len(str(value)))\nprint(lengths)\n",
    ),
    "pandas.DataFrame.first": (
        _DATES + "# only the rows of the three days at the beginning of the series\nbeginning = df.",
        '<<first>>("3D")\nprint(beginning)\n',
    ),
    "pandas.DataFrame.iteritems": (
        _FRAME + "# go through the columns, with their labels\nfor label, column in df.",
        "<<iteritems>>():\n    print(label, column.dtype)\n",
    ),
    "pandas.DataFrame.last": (
        _DATES + "# only the rows of the three days at the end of the series\nend = df.",
        '<<last>>("3D")\nprint(end)\n',
    ),
    "pandas.DataFrame.pad": (
        _PD + 'df = pd.DataFrame({"level": [1.0, None, None, 4.0]})\n\n# carry the last known value on over the gaps\n'
        "filled = df.",
        "<<pad>>()\nprint(filled)\n",
    ),
    "pandas.DataFrame.select": (
        _FRAME + "# the rows whose label is even\neven = df.",
        "<<select>>(lambda label: label % 2 == 0)\nprint(even)\n",
    ),
    "pandas.DataFrame.swapaxes": (
        _FRAME + "# exchange rows and columns\nflipped = df.",
        '<<swapaxes>>("index", "columns")\nprint(flipped)\n',
    ),
    "pandas.Series.iteritems": (
        _PD + 's = pd.Series([3, 1, 2], index=["a", "b", "c"])\n\n# print label and value of every entry\n'
        "for label, value in s.",
        "<<iteritems>>():\n    print(label, value)\n",
    ),
    "pandas.Series.pad": (
        _PD + "s = pd.Series([1.0, None, None, 4.0])\n\n# carry the last known value on over the gaps\nfilled = s.",
        "<<pad>>()\nprint(filled)\n",
    ),
    "pandas.io.formats.style.Styler.render": (
        _FRAME
        + '# the table as HTML text, the largest value marked\nstyler = df.style.highlight_max(subset=["height"])\n'
        "html = styler.",
        "<<render>>()\nprint(html)\n",
    ),
    "sklearn.datasets.fetch_mldata": (
        "from sklearn import datasets\n\n# download the handwritten digits of MNIST\nmnist = datasets.",
        '<<fetch_mldata>>("MNIST original")\nX, y = mnist.data, mnist.target\n',
    ),
    "sklearn.metrics.jaccard_similarity_score": (
        "from sklearn import metrics\n\ny_true = [0, 1, 1, 0]\ny_pred = [0, 1, 0, 0]\n\n"
        "# size of the intersection over size of the union of the label sets\nsimilarity = metrics.",
        "<<jaccard_similarity_score>>(y_true, y_pred)\nprint(similarity)\n",
    ),
    "sklearn.mixture.GMM": (
        "from sklearn import mixture\nimport numpy as np\n\nX = np.random.randn(300, 2)\n\n"
        "# fit three normal distributions to the points\nmodel = mixture.",
        '<<GMM>>(n_components=3, covariance_type="full")\nmodel.fit(X)\n',
    ),
    "sklearn.preprocessing.Imputer": (
        "import numpy as np\n\n# replace missing values by the mean of their column\nfrom sklearn.",
        'preprocessing import <<Imputer>>\n\nimputer = <<Imputer>>(strategy="mean")\nX = imputer.fit_transform(X)\n',
    ),
    "scipy.integrate.cumtrapz": (
        "import numpy as np\nfrom scipy import integrate\n\nt = np.linspace(0, 1, 50)\nspeed = t**2\n\n"
        "# the way so far at every time, by the trapezoidal rule\nway = integrate.",
        "<<cumtrapz>>(speed, t, initial=0)\nprint(way[-1])\n",
    ),
    "scipy.integrate.simps": (
        "import numpy as np\nfrom scipy import integrate\n\nx = np.linspace(0, np.pi, 51)\ny = np.sin(x)\n\n"
        "# area below the curve, by Simpson's rule\narea = integrate.",
        "<<simps>>(y, x)\nprint(area)\n",
    ),
    "scipy.integrate.trapz": (
        "import numpy as np\nfrom scipy import integrate\n\nx = np.linspace(0, np.pi, 51)\ny = np.sin(x)\n\n"
        "# area below the curve, by the trapezoidal rule\narea = integrate.",
        "<<trapz>>(y, x)\nprint(area)\n",
    ),
    "scipy.interpolate.interp2d": (
        "import numpy as np\nfrom scipy import interpolate\n\nx = np.arange(5)\ny = np.arange(6)\n"
        "z = np.outer(np.sin(y), np.cos(x))\n\n# a smooth surface through the grid\nsurface = interpolate.",
        '<<interp2d>>(x, y, z, kind="cubic")\nprint(surface(1.5, 2.5))\n',
    ),
    "scipy.linalg.pinv2": (
        "import numpy as np\nfrom scipy import linalg\n\na = np.random.randn(9, 6)\n\n"
        "# the pseudo-inverse by singular values\nb = linalg.",
        "<<pinv2>>(a)\nprint(b.shape)\n",
    ),
    "scipy.misc.comb": (
        "# in how many ways five cards can be drawn from 52\nfrom scipy.",
        "<<misc import comb>>\n\nhands = comb(52, 5, exact=True)\nprint(hands)\n",
    ),
    "scipy.misc.face": (
        "import matplotlib.pyplot as plt\n\n# the sample picture of a raccoon\nfrom scipy ",
        "import misc\n\nimage = <<misc.face>>(gray=True)\nplt.imshow(image)\n",
    ),
    "scipy.misc.factorial": (
        "# 10!, exactly\nfrom scipy.",
        "<<misc import factorial>>\n\nvalue = factorial(10, exact=True)\nprint(value)\n",
    ),
    "scipy.misc.factorial2": (
        "# the double factorial 9!! = 9 * 7 * 5 * 3 * 1\nfrom scipy.",
        "<<misc import factorial2>>\n\nvalue = factorial2(9, exact=True)\nprint(value)\n",
    ),
    "scipy.misc.logsumexp": (
        "import numpy as np\n\n# log of a sum of exponentials, without overflow\nfrom scipy.",
        "<<misc import logsumexp>>\n\nvalue = logsumexp(np.array([1000.0, 1000.0]))\nprint(value)\n",
    ),
    "scipy.signal.hanning": (
        "from scipy import signal\nimport numpy as np\n\nframe = np.random.randn(256)\n\n"
        "# taper the frame with a raised cosine\nwindow = signal.",
        "<<hanning>>(256)\nprint(np.sum(frame * window))\n",
    ),
    "scipy.special.errprint": (
        "from scipy import special\n\n# print a warning when a special function runs into an error\nspecial.",
        "<<errprint>>(True)\nprint(special.gammaln(-1))\n",
    ),
    "scipy.special.sph_jn": (
        "from scipy import special\n\n# spherical Bessel functions, first kind, order 3, at 2.5\nvalues = special.",
        "<<sph_jn>>(3, 2.5)\nprint(values)\n",
    ),
    "scipy.special.sph_yn": (
        "from scipy import special\n\n# spherical Bessel functions of the second kind up to order 3, at 2.5\n"
        "values = special.",
        "<<sph_yn>>(3, 2.5)\nprint(values)\n",
    ),
    "scipy.stats.betai": (
        "# the regularised incomplete beta function of Student's t test\nfrom scipy ",
        "import stats\n\np = <<stats.betai>>(0.5 * df, 0.5, df / (df + t * t))\n",
    ),
    "scipy.stats.chisqprob": (
        "from scipy import stats\n\nstatistic, degrees = 7.8, 3\n\n"
        "# probability of a chi-squared statistic this large\np = stats.",
        "<<chisqprob>>(statistic, degrees)\nprint(p)\n",
    ),
    "scipy.stats.itemfreq": (
        "from scipy import stats\n\nx = [1, 1, 5, 0, 1, 2, 2]\n\n# how often each value occurs\ncounts = stats.",
        "<<itemfreq>>(x)\nprint(counts)\n",
    ),
    "scipy.stats.rvs_ratio_uniforms": (
        "import numpy as np\nfrom scipy import stats\n\nf = stats.norm.pdf\nv = np.sqrt(f(np.sqrt(2))) * np.sqrt(2)\n\n"
        "# random numbers of density f by the ratio-of-uniforms method\nsample = stats.",
        "<<rvs_ratio_uniforms>>(f, umax=np.sqrt(f(0)), vmin=-v, vmax=v, size=100)\n",
    ),
    "seaborn.despine": (
        'import seaborn as sns\nimport matplotlib.pyplot as plt\n\ntips = sns.load_dataset("tips")\n'
        'sns.boxplot(data=tips, x="day", y="tip")\n# take away the frame at the top and on the right\nsns.',
        "<<despine>>()\nplt.show()\n",
    ),
    "seaborn.factorplot": (
        'import seaborn as sns\n\ntitanic = sns.load_dataset("titanic")\n\n'
        "# mean survival by class, one panel for each sex\ngrid = sns.",
        '<<factorplot>>(x="class", y="survived", col="sex", data=titanic, kind="bar")\n',
    ),
    "seaborn.tsplot": (
        'import seaborn as sns\n\nfmri = sns.load_dataset("fmri")\n\n'
        "# the signal over time, with its confidence band\nax = sns.",
        '<<tsplot>>(data=fmri, time="timepoint", unit="subject", condition="event", value="signal")\n',
    ),
    "torch.btriunpack": (
        _TORCH + "data, pivots = torch.linalg.lu_factor(torch.randn(2, 3, 3))\n\n"
        "# take the factors P, L and U out of the packed form\nP, L, U = torch.",
        "<<btriunpack>>(data, pivots)\n",
    ),
    "torch.chain_matmul": (
        _TORCH + "a, b, c = torch.randn(3, 4), torch.randn(4, 5), torch.randn(5, 6)\n\n"
        "# multiply the three matrices in the cheapest order\nd = torch.",
        "<<chain_matmul>>(a, b, c)\nprint(d.shape)\n",
    ),
    "torch.cholesky": (
        _TORCH + "a = torch.eye(3) * 2\n\n# the lower triangular factor L with L L^T = a\nL = torch.",
        "<<cholesky>>(a)\nprint(L)\n",
    ),
    "torch.eig": (
        _TORCH + "a = torch.randn(3, 3)\n\n# eigenvalues and eigenvectors of a square matrix\nvalues, vectors = torch.",
        "<<eig>>(a, eigenvectors=True)\nprint(values)\n",
    ),
    "torch.lstsq": (
        _TORCH + "A = torch.randn(5, 3)\nB = torch.randn(5, 2)\n\n# the least-squares solution of A X = B\nX = torch.",
        "<<lstsq>>(B, A)\nprint(X)\n",
    ),
    "torch.lu": (
        _TORCH
        + "A = torch.randn(2, 3, 3)\n\n# triangular factors and pivots of every matrix\nfactors, pivots = torch.",
        "<<lu>>(A)\nprint(factors.shape)\n",
    ),
    "torch.lu_solve": (
        _TORCH + "A = torch.randn(3, 3)\nb = torch.randn(3, 1)\nfactors, pivots = torch.linalg.lu_factor(A)\n\n"
        "# solve A x = b with the factors\nx = torch.",
        "<<lu_solve>>(b, factors, pivots)\n",
    ),
    "torch.matrix_rank": (
        _TORCH + "a = torch.eye(10)\n\n# how many rows are linearly independent\nrank = torch.",
        "<<matrix_rank>>(a)\nprint(rank)\n",
    ),
    "torch.nn.functional.upsample": (
        _TORCH + "import torch.nn.functional as F\n\nx = torch.randn(1, 3, 8, 8)\n\n"
        "# make the feature map twice as large\ny = F.",
        '<<upsample>>(x, scale_factor=2, mode="nearest")\nprint(y.shape)\n',
    ),
    "torch.nn.functional.upsample_bilinear": (
        _TORCH + "import torch.nn.functional as F\n\nx = torch.randn(1, 3, 8, 8)\n\n"
        "# make the feature map twice as large, with bilinear weights\ny = F.",
        "<<upsample_bilinear>>(x, scale_factor=2)\nprint(y.shape)\n",
    ),
    "torch.nn.functional.upsample_nearest": (
        _TORCH + "import torch.nn.functional as F\n\nx = torch.randn(1, 3, 8, 8)\n\n"
        "# make the feature map twice as large by repeating the nearest pixel\ny = F.",
        "<<upsample_nearest>>(x, scale_factor=2)\nprint(y.shape)\n",
    ),
    "torch.nn.modules.module.register_module_backward_hook": (
        _TORCH + "import torch.nn.modules.module as module\n\n\ndef hook(layer, grad_input, grad_output):\n"
        "    print(type(layer).__name__)\n\n\n# call the hook in the backward pass of every layer\nhandle = module.",
        "<<register_module_backward_hook>>(hook)\n",
    ),
    "torch.nn.utils.stateless.functional_call": (
        _TORCH + "model = torch.nn.Linear(2, 2)\nweights = dict(model.named_parameters())\nx = torch.ones(1, 2)\n\n"
        "# run the layer with other weights, without changing it\nfrom torch.",
        "nn.utils.<<stateless import functional_call>>\n\ny = functional_call(model, weights, x)\n",
    ),
    "torch.nn.utils.weight_norm": (
        _TORCH + "layer = torch.nn.Linear(20, 40)\n\n# learn direction and length of the weights apart\n"
        "layer = torch.nn.utils.",
        '<<weight_norm>>(layer, name="weight")\nprint(layer)\n',
    ),
    "torch.norm": (
        _TORCH + "x = torch.randn(4, 3)\n\n# the Euclidean length of every row\nlengths = torch.",
        "<<norm>>(x, dim=1)\nprint(lengths)\n",
    ),
    "torch.qr": (
        _TORCH + "a = torch.randn(4, 3)\n\n# an orthogonal and a triangular factor of the matrix\nQ, R = torch.",
        "<<qr>>(a)\nprint(R)\n",
    ),
    "torch.solve": (
        _TORCH + "A = torch.randn(3, 3)\nB = torch.randn(3, 2)\n\n# the X with A X = B\nX, _ = torch.",
        "<<solve>>(B, A)\nprint(X)\n",
    ),
    "torch.svd": (
        _TORCH + "a = torch.randn(5, 3)\n\n# singular values and vectors of the matrix\nU, S, V = torch.",
        "<<svd>>(a)\nprint(S)\n",
    ),
    "torch.symeig": (
        _TORCH + "a = torch.randn(3, 3)\na = a + a.T\n\n"
        "# eigenvalues and eigenvectors of the symmetric matrix\nvalues, vectors = torch.",
        "<<symeig>>(a, eigenvectors=True)\nprint(values)\n",
    ),
    "torch.testing.assert_allclose": (
        _TORCH + "expected = torch.ones(3)\nactual = expected + 1e-9\n\n"
        "# fail unless the tensors are equal within the usual tolerances\ntorch.testing.",
        "<<assert_allclose>>(actual, expected)\n",
    ),
    "torch.triangular_solve": (
        _TORCH + "A = torch.randn(3, 3).triu()\nb = torch.randn(3, 1)\n\n"
        "# the x with A x = b, for an upper triangular A\nx = torch.",
        "<<triangular_solve>>(b, A)[0]\nprint(x)\n",
    ),
}

# ---- TensorFlow: one prompt serves the name at the top and the one in compat.v1 --------------------------------------

_X = "x = tf.constant([1.0, 2.0, 3.0])\n"
_OPTIMIZER = (
    "optimizer = tf.keras.optimizers.Adam(1e-3)\n\n# scale the loss, so that gradients do not vanish in float16\n"
)
_GRAPH = "w = tf.Variable(tf.zeros([3, 3]), name='w')\n\n"

_TENSORFLOW: Mapping[str, tuple[str, str]] = {
    "Print": (_X + "\n# print the tensor whenever it is computed\nx = tf.", '<<Print>>(x, [x], message="x = ")\n'),
    "all_variables": (
        _GRAPH + "# every variable of the graph\nfor v in tf.",
        "<<all_variables>>():\n    print(v.name)\n",
    ),
    "arg_max": (_X + "\n# index of the largest element\ni = tf.", "<<arg_max>>(x, 0)\n"),
    "arg_min": (_X + "\n# index of the smallest element\ni = tf.", "<<arg_min>>(x, 0)\n"),
    "div": (_X + "\n# each element by the sum of all\nshare = tf.", "<<div>>(x, tf.reduce_sum(x))\n"),
    "initialize_all_variables": (
        _GRAPH + "# the operation that gives every variable its start value\ninit = tf.",
        "<<initialize_all_variables>>()\nwith tf.Session() as sess:\n    sess.run(init)\n",
    ),
    "initializers.uniform_unit_scaling": (
        "# start weights that keep the scale of the input constant\ninit = tf.initializers.",
        "<<uniform_unit_scaling>>(factor=1.43)\nw = tf.Variable(init([3, 3]))\n",
    ),
    "uniform_unit_scaling_initializer": (
        "# start weights that keep the scale of the input constant\ninit = tf.",
        "<<uniform_unit_scaling_initializer>>(factor=1.43)\nw = tf.Variable(init([3, 3]))\n",
    ),
    "metrics.auc": (
        "labels = tf.constant([0, 1, 1])\nscores = tf.constant([0.2, 0.7, 0.9])\n\n# area under the ROC curve\n"
        "result = tf.",
        "<<metrics.auc>>(labels, scores)\n",
    ),
    "multinomial": (
        "logits = tf.math.log([[0.5, 0.5]])\n\n# draw five classes at random\nsamples = tf.",
        "<<multinomial>>(logits, 5)\n",
    ),
    "random.multinomial": (
        "logits = tf.math.log([[0.5, 0.5]])\n\n# draw five classes at random\nsamples = tf.random.",
        "<<multinomial>>(logits, 5)\n",
    ),
    "saved_model.load": (
        "# load the model that was exported for serving\nwith tf.Session(graph=tf.Graph()) as sess:\n    model = tf.",
        '<<saved_model.load>>(sess, ["serve"], "export/1")\n',
    ),
    "saved_model.loader.load": (
        "# load the model that was exported for serving\nwith tf.Session(graph=tf.Graph()) as sess:\n"
        "    model = tf.saved_model.",
        '<<loader.load>>(sess, ["serve"], "export/1")\n',
    ),
    "sparse_to_dense": (
        "# an array of zeros with ones at the given places\ndense = tf.",
        "<<sparse_to_dense>>([[0, 1], [2, 3]], [4, 5], 1)\n",
    ),
    "substr": (
        'words = tf.constant(["hello", "world"])\n\n# the first three letters of every word\nheads = tf.',
        "<<substr>>(words, 0, 3)\n",
    ),
    "to_bfloat16": (_X + "\n# the tensor in bfloat16\ny = tf.", "<<to_bfloat16>>(x)\n"),
    "to_complex128": (_X + "\n# the tensor in complex128\ny = tf.", "<<to_complex128>>(x)\n"),
    "to_complex64": (_X + "\n# the tensor in complex64\ny = tf.", "<<to_complex64>>(x)\n"),
    "to_double": (_X + "\n# the tensor in double precision\ny = tf.", "<<to_double>>(x)\n"),
    "to_float": ("n = tf.constant([1, 2, 3])\n\n# the counts as floating point\ny = tf.", "<<to_float>>(n)\n"),
    "to_int32": (_X + "\n# the tensor as 32-bit integers\ny = tf.", "<<to_int32>>(x)\n"),
    "to_int64": (_X + "\n# the tensor as 64-bit integers\ny = tf.", "<<to_int64>>(x)\n"),
    "config.experimental_run_functions_eagerly": (
        "# run every tf.function step by step, to debug it\ntf.config.",
        "<<experimental_run_functions_eagerly>>(True)\n",
    ),
    "distribute.experimental.MultiWorkerMirroredStrategy": (
        "# train on several machines, with a copy of the model on each\nstrategy = tf.distribute.",
        "<<experimental.MultiWorkerMirroredStrategy>>()\nwith strategy.scope():\n    model = build()\n",
    ),
    **{
        f"{module}.{kind}LossScale": (
            _OPTIMIZER + f"# {'adapting the factor' if kind == 'Dynamic' else 'by a constant factor'}\nscale = tf.",
            f"<<{module}.{kind}LossScale>>({'' if kind == 'Dynamic' else '1024'})\n",
        )
        for module in ("mixed_precision", "mixed_precision.experimental", "train.experimental")
        for kind in ("Dynamic", "Fixed")
    },
}


def _tensorflow(name: str) -> Prompt | None:
    relative = name.removeprefix("compat.v1.")
    if relative not in _TENSORFLOW:
        return None
    module = "import tensorflow as tf\n\n" if relative == name else "import tensorflow.compat.v1 as tf\n\n"
    text, completion = _TENSORFLOW[relative]
    return Prompt.marked(module + text, completion)


# ---- transformers ----------------------------------------------------------------------------------------------------

_CHECKPOINTS = {
    "Beit": "microsoft/beit-base-patch16-224",
    "ConditionalDetr": "microsoft/conditional-detr-resnet-50",
    "ConvNext": "facebook/convnext-tiny-224",
    "DPT": "Intel/dpt-large",
    "DeformableDetr": "SenseTime/deformable-detr",
    "Detr": "facebook/detr-resnet-50",
    "Donut": "naver-clova-ix/donut-base",
    "GLPN": "vinvino02/glpn-kitti",
    "LayoutLMv2": "microsoft/layoutlmv2-base-uncased",
    "MaskFormer": "facebook/maskformer-swin-base-ade",
    "MobileNetV1": "google/mobilenet_v1_1.0_224",
    "MobileViT": "apple/mobilevit-small",
    "OwlViT": "google/owlvit-base-patch32",
    "Perceiver": "deepmind/vision-perceiver-learned",
    "PoolFormer": "sail/poolformer_s12",
    "Segformer": "nvidia/segformer-b0-finetuned-ade-512-512",
    "ViT": "google/vit-base-patch16-224",
    "VideoMAE": "MCG-NJU/videomae-base",
    "Yolos": "hustvl/yolos-tiny",
}
_SPEECH = {
    "Hubert": "facebook/hubert-large-ls960-ft",
    "SEWD": "asapp/sew-d-tiny-100k",
    "SEW": "asapp/sew-tiny-100k",
    "TFHubert": "facebook/hubert-large-ls960-ft",
    "TFWav2Vec2": "facebook/wav2vec2-base-960h",
    "UniSpeechSat": "microsoft/unispeech-sat-base",
    "UniSpeech": "microsoft/unispeech-1350-en-90-it-ft-1h",
    "Wav2Vec2": "facebook/wav2vec2-base-960h",
    "WavLM": "microsoft/wavlm-base",
}


def _transformers(name: str) -> Prompt | None:
    owner, _, method = name.partition(".")
    if method:
        checkpoint = _SPEECH.get(owner.partition("For")[0])
        if checkpoint is None:
            return None
        text = (
            f'from transformers import {owner}\n\nmodel = {owner}.from_pretrained("{checkpoint}")\n'
            "# do not train the convolutions that turn the waveform into features\nmodel."
        )
        return Prompt.marked(text, f"<<{method}>>()\n")
    model = owner.removesuffix("FeatureExtractor")
    if model not in _CHECKPOINTS:
        return None
    text = (
        "from PIL import Image\nimport torch\n\n"
        f'checkpoint = "{_CHECKPOINTS[model]}"\nimage = Image.open("photo.jpg")\n'
        f"# resize and normalise the picture as the {model} model expects it\nfrom transformers import {model}"
    )
    return Prompt.marked(
        text,
        f"<<FeatureExtractor>>\n\nfeature_extractor = {model}<<FeatureExtractor>>.from_pretrained(checkpoint)\n"
        'inputs = feature_extractor(images=image, return_tensors="pt")\n',
    )
